"""Why an endpoint failed: evidence from AWS, rules, and one cause with one remedy."""
