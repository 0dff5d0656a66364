"""Numbered plain-SQL migrations: `gateway/` for the gateway's database, `slice/` for each slice's."""
