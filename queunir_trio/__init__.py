"""The gateway of a WhatsApp CRM: it signs people in and carries them to their slice."""

from importlib.metadata import version

__version__ = version("queunir-trio")
