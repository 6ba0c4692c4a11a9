"""The door: ``lsa``, its commands and options."""

from lsa_study.cli.app import app, main

__all__ = ["app", "main"]
