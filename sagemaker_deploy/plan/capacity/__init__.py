"""How many copies or instances serve: automatic scaling, schedules, pauses."""
