"""All five calls through posthog-python. Usage: send.py HOST KEY. Fails if the SDK reports an error."""

import sys

from posthog import Posthog

errors = []
host, key = sys.argv[1:]
# No retries: a wrong key would only take longer.
posthog = Posthog(key, host=host, gzip=True, max_retries=0, on_error=lambda error, batch: errors.append(error))
posthog.capture("plan upgraded", distinct_id="user_1", properties={"plan": "team", "note": "caf\u00e9 \U0001f680"})
posthog.set(distinct_id="user_1", properties={"plan": "team"})
# The SDK no longer has a call of its own for this.
posthog.capture("$identify", distinct_id="user_1", properties={"$set": {"email": "ada@example.com"}})
posthog.group_identify("company", "acme", {"tier": "gold"})
posthog.alias("anon_1", "user_1")
posthog.capture("$pageview", distinct_id="user_1", properties={"$current_url": "https://example.com/?ref=nav"})
posthog.shutdown()
sys.exit(f"the SDK reports: {errors}" if errors else 0)
