// All five calls through posthog-node. Usage: send.mjs HOST KEY. Fails if the SDK reports an error.
import { PostHog } from 'posthog-node'

const [host, key] = process.argv.slice(2)
// No retries: a wrong key would only take longer.
const posthog = new PostHog(key, { host, fetchRetryCount: 0 })
posthog.on('error', (error) => {
  console.error(`the SDK reports: ${error}`)
  process.exitCode = 1
})
const distinctId = 'user_1'
posthog.capture({ distinctId, event: 'plan upgraded', properties: { plan: 'team', note: 'café 🚀' } })
posthog.identify({ distinctId, properties: { email: 'ada@example.com' } })
posthog.capture({ distinctId, event: '$set', properties: { $set: { plan: 'team' } } })
posthog.groupIdentify({ groupType: 'company', groupKey: 'acme', properties: { tier: 'gold' } })
posthog.alias({ distinctId: 'anon_1', alias: 'user_1' })
posthog.capture({ distinctId, event: '$pageview', properties: { $current_url: 'https://example.com/?ref=nav' } })
await posthog.shutdown()
