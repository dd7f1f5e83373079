"""HTTP: request bodies, responses, error responses, and the guards of every route."""
