"""Containers on this machine: their processes, requests and files."""
