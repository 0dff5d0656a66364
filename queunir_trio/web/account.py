"""Leaving: a customer takes their data along, has everything removed, and is shown that it is gone."""

from typing import Final

import structlog
from quart import Blueprint, Response, request
from quart_schema import document_response, tag, validate_request, validate_response

from queunir_trio.errors import Refused
from queunir_trio.model.accounts import is_token, token_hash
from queunir_trio.model.jobs import Job as StoredJob
from queunir_trio.operations import exporting, wipe_orders
from queunir_trio.operations.wipe_receipt import LAYERS
from queunir_trio.outside import export_files
from queunir_trio.store import receipts
from queunir_trio.web import identity
from queunir_trio.web.account_schemas import (
    Export,
    ExportAsked,
    ExportFile,
    Farewell,
    Leaving,
    Receipt,
    RemovalUnderWay,
    UserRemoval,
)
from queunir_trio.web.described import answers_file, errors, needs_admin, needs_session
from queunir_trio.web.file_body import FilePart
from queunir_trio.web.orchestrator_schemas import Job
from queunir_trio.web.orchestrator_showing import job_of
from queunir_trio.web.pages import spoken_page
from queunir_trio.web.world import the_world

ASK_AGAIN_IN: Final = 2  # seconds, for one who waits for the end of a removal
JSON: Final = "application/json"
HTML: Final = "text/html"
USER_AT_MOST: Final = 2**31 - 1
JOB_AT_MOST: Final = 2**63 - 1

log = structlog.get_logger()
account = Blueprint("account", __name__)


@account.delete("/auth/account")
@tag(["leaving"])
@needs_session
@validate_request(Farewell)
@validate_response(Leaving, 202)
@errors("not_authenticated", "bad_credentials", "rate_limited", "busy")
async def delete_account(data: Farewell) -> tuple[Leaving, int]:
    """Delete the account with everything that belongs to it, for good.

    From this answer on nobody can log in. The workspace, its database and files, the WhatsApp session and in the end
    the account are removed step by step; `receipt_url` shows how far that is and then what was removed. To keep the
    data, export it before.
    """
    world, facts = the_world(), await identity.session()
    identity.throttled(
        world.throttles.password_user, str(facts.user.id), "Too many attempts. Wait a moment and try again."
    )
    ordered = await wipe_orders.close_account(
        world.db, world.hasher, facts.user, data.password, facts.token_hash, world.settings.app_url
    )
    world.routes.revoke(ordered.ended)
    world.routes.forget_user(facts.user.id)
    identity.clear_cookie()
    url = ordered.receipt_url(world.settings.app_url)
    assert url is not None, "it was ordered just now"
    return Leaving(receipt_url=url), 202


@account.delete("/admin/users/<int:user_id>")
@tag(["administration"])
@needs_admin
@validate_response(UserRemoval, 202)
@errors("bad_key", "not_authenticated", "forbidden", "no_such_user", "rate_limited")
async def remove_user(user_id: int) -> tuple[UserRemoval, int]:
    """Delete a user with everything that belongs to them, for good. Safe to repeat."""
    actor, world = await identity.admin(), the_world()
    if user_id > USER_AT_MOST:
        raise Refused("no_such_user", "There is no such user.")
    ordered = await wipe_orders.order(world.db, user_id, world.settings.app_url, actor, identity.client_address())
    world.routes.revoke(ordered.ended)
    world.routes.forget_user(user_id)
    return UserRemoval(job=job_of(ordered.job), receipt_url=ordered.receipt_url(world.settings.app_url)), 202


@account.post("/auth/export")
@tag(["leaving"])
@needs_session
@validate_response(ExportAsked, 202)
@errors("not_authenticated", "rate_limited")
async def ask_for_export() -> tuple[ExportAsked, int]:
    """Have all data of the account packed in one ZIP file; one at a time.

    It holds every table of the workspace as JSON and as CSV, the media, and a page to read first. A letter tells when
    it is ready. This works while the account is suspended, too.
    """
    world, facts = the_world(), await identity.session()
    under_way = await exporting.newest(world.db, world.settings.data_dir, facts.user.id)
    if under_way is None or under_way.job.is_finished:
        identity.throttled(
            world.throttles.export_user, str(facts.user.id), "That is enough for now. Wait a while and try again."
        )
    job = await exporting.ask(world.db, facts.user.id)
    log.info("export_asked", job_id=job.id)
    return ExportAsked(job=_export_of(job)), 202


@account.get("/auth/export")
@tag(["leaving"])
@needs_session
@validate_response(Export)
@errors("not_authenticated", "no_export")
async def show_export() -> Export:
    """How far the newest export is, and when it is done where it can be downloaded."""
    world, facts = the_world(), await identity.session()
    found = await exporting.newest(world.db, world.settings.data_dir, facts.user.id)
    if found is None:
        raise Refused("no_export", "No export was asked for yet.")
    file = None
    if found.file is not None and found.expires_at is not None:
        url = f"{world.settings.app_url}/auth/export/{found.job.id}/export.zip"
        file = ExportFile(size_bytes=found.file.size, expires_at=found.expires_at, download_url=url)
    return Export(job=_export_of(found.job), file=file)


@account.get("/auth/export/<int:job_id>/export.zip")
@tag(["leaving"])
@needs_session
@answers_file("application/zip")
@errors("not_authenticated", "no_export", "export_expired")
async def download_export(job_id: int) -> Response:
    """The ZIP file of one of the user's exports, for 7 days. Parts of it by `Range`."""
    world, facts = the_world(), await identity.session()
    if job_id > JOB_AT_MOST:
        raise Refused("no_export", "There is no such export.")
    file = await exporting.finished(world.db, world.settings.data_dir, facts.user.id, job_id)
    body = FilePart(await export_files.opened(file))
    answer = Response(body, content_type="application/zip")
    answer.headers["Content-Disposition"] = f'attachment; filename="queunir-export-{job_id}.zip"'
    answer.headers["ETag"] = f'"{job_id}-{file.size}"'
    answer.headers["Accept-Ranges"] = "bytes"
    answer.headers["Content-Length"] = str(file.size)
    log.info("export_downloaded", job_id=job_id, size=file.size)
    await answer.make_conditional(request, accept_ranges=True, complete_length=file.size)
    if answer.response is not body:  # the client has it already
        body.close()
    return answer


def _export_of(job: StoredJob) -> Job:
    """What the customer is shown of it: a refusal is a sentence for a person, anything else only for operators."""
    shown = job_of(job)
    if shown.error is not None and shown.code in (None, "given_up"):
        again = "It could not be made yet and is tried again." if shown.code is None else "It could not be made."
        return shown.model_copy(update={"error": again})
    return shown


@account.get("/receipts/<token>")
@tag(["leaving"])
@document_response(Receipt, 200)
@document_response(RemovalUnderWay, 202)
@errors("no_such_receipt")
async def show_receipt(token: str) -> Response:
    """What was removed with an account, for whoever has the link.

    While it goes on: 202 with the step. Then: 200 with the receipt. Browsers get a page of it.
    """
    raw = token.encode(errors="replace")
    found = await receipts.find_by_token(the_world().db, token_hash(raw)) if is_token(raw) else None
    if found is None:
        raise Refused("no_such_receipt", "There is no such receipt.")
    receipt = Receipt(state="done", **found.document) if found.document is not None else None
    if request.accept_mimetypes.best_match([JSON, HTML], JSON) == HTML:
        return await spoken_page("receipt", receipt=receipt, percent=found.percent, layers=LAYERS)
    if receipt is not None:
        return Response(receipt.model_dump_json(), content_type=JSON)
    under_way = RemovalUnderWay(state="under_way", step=found.step, percent=found.percent)
    answer = Response(under_way.model_dump_json(), 202, content_type=JSON)
    answer.headers["Retry-After"] = str(ASK_AGAIN_IN)
    return answer
