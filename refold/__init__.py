"""Refold: event-sourced federated learning."""
