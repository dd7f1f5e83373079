"""Containers on this machine: started, watched, asked, and their files."""
