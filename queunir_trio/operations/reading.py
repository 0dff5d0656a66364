"""Who reads a slice's database for us: the slice's own role, so that what is run there can do no more than it could."""

from dataclasses import replace
from uuid import UUID

from queunir_trio.model.slices import Names, derived_secret
from queunir_trio.operations.steps import Resources
from queunir_trio.settings import DatabaseSettings
from queunir_trio.store import slice_databases
from queunir_trio.store.isolation import OLD_ROLE


async def slice_reader(resources: Resources, names: Names, uuid: UUID) -> DatabaseSettings:
    """How to log in to a slice's database as the slice. DatabaseUnavailable."""
    where, settings = resources.where, resources.settings
    password = derived_secret(settings.secret, "database", uuid)
    role = names.role
    if not await slice_databases.renew_login(where, names, password, uuid):
        role, password = OLD_ROLE, settings.secret
    host = where.host
    if settings.runtime == "docker" and not host.startswith("/"):
        host = str(settings.docker.database_socket)  # slices are let in by the socket only
    return replace(where, host=host, user=role, password=password)
