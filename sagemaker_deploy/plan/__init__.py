"""Plans as data: pure functions of a configuration and the account state; no AWS calls.

`steps` defines the parts of a plan, `requests` builds the parameters of API calls, `deploy` and
`delete` order the steps, `permissions` builds policies, `sizing` compares a model with an instance.
"""
