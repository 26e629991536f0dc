"""Looked at by a person: tables, pictures, the report page."""
