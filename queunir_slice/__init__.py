"""The slice: one customer's CRM backend and WhatsApp session, in a process and a database of its own."""
