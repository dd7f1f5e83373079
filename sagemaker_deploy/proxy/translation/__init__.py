"""Translations between the APIs of clients and the bodies and streams of containers."""
