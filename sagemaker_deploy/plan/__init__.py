"""Plans as data: pure functions of a configuration and the account state; no AWS calls.

`steps` is the vocabulary, `requests` makes the parameters of API calls, `deploy` and `delete` put
steps in order, `iam` writes policies, `sizing` compares a model with an instance.
"""
