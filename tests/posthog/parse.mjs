// Passes queries to PostHog's own parser. Usage: parse.mjs FILE, which holds a JSON array of them.
import { readFileSync } from 'node:fs'

import createHogQLParser from '@posthog/hogql-parser'

const parser = await createHogQLParser()
const queries = JSON.parse(readFileSync(process.argv[2]))
for (const query of queries) {
  const parsed = JSON.parse(parser.parseSelect(query))
  if (parsed.error) {
    console.log(`FAILED  ${parsed.message}: ${query}`)
    process.exitCode = 1
  }
}
if (!process.exitCode) console.log(`ok      PostHog's parser takes all ${queries.length} queries`)
