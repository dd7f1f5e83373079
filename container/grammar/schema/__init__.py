"""JSON Schemas: walks over them, and rewrites them into what llguidance enforces; pure Python."""
