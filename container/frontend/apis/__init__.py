"""The APIs: a package or module for each dialect."""
