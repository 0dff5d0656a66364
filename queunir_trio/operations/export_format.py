"""How an export says what it holds: JSON as it is, CSV for spreadsheets, and a page to read first."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

# A spreadsheet takes a text that begins like this for a formula and may carry it out. Numbers, and telephone numbers
# with them, do no harm.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")
_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?")
_DIGITS_AT_MOST: Final = 1000
_BYTE_ORDER_MARK: Final = "\ufeff"  # without it a spreadsheet takes UTF-8 for something else


def json_rows(rows: Sequence[str], is_first: bool) -> bytes:
    """Rows, each the text of an object, as they follow in an array."""
    return (("" if is_first else ",") + "\n" + ",\n".join(rows)).encode()


def csv_head(columns: Sequence[str]) -> bytes:
    """The first line."""
    return (_BYTE_ORDER_MARK + _lines([[_cell(column) for column in columns]])).encode()


def csv_rows(columns: Sequence[str], rows: Sequence[str]) -> bytes:
    """Rows, each the text of an object, as lines. Lists and objects are cells of JSON; null is an empty one."""
    documents = (json.loads(row, parse_float=str, parse_int=_whole) for row in rows)
    return _lines([[_cell(document[column]) for column in columns] for document in documents]).encode()


def _whole(digits: str) -> int | str:
    """A number, or its digits where Python makes none of so many."""
    return int(digits) if len(digits) < _DIGITS_AT_MOST else digits


def _lines(rows: Sequence[Sequence[str]]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    text = str(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def readme(language: str, made_at: datetime, rows: Mapping[str, int], media_files: int, *, has_workspace: bool) -> str:
    """What the ZIP holds, in the customer's language; English for those that we do not speak."""
    says = _SAYS.get(language.partition("-")[0], _SAYS["en"])
    tables = "\n".join(f"  {name:<24}{count:>10}" for name, count in rows.items())
    body = says["workspace"].format(tables=tables, media=media_files) if has_workspace else says["empty"]
    return f"{says['title'].format(at=made_at.isoformat(timespec='seconds'))}\n\n{body}\n{says['account']}\n"


_SAYS: Final = {
    "en": {
        "title": "Your data, as it was at {at}",
        "workspace": (
            "data/      every table of your workspace, twice: .json (an array of objects) and .csv (UTF-8, with a\n"
            "           header). In CSV a text that a spreadsheet would take for a formula begins with an apostrophe.\n"
            "           Keys of other services, such as the one of your assistant's model, are left out.\n"
            "media/     your files; media_files in data/ tells to which message each belongs\n\n"
            "Rows of each table:\n{tables}\n\nMedia files: {media}\n"
        ),
        "empty": "There is no workspace of yours on our servers, so there are no contacts, chats or messages here.\n",
        "account": "account.json holds what the service itself knows of you.",
    },
    "es": {
        "title": "Tus datos, tal como estaban el {at}",
        "workspace": (
            "data/      todas las tablas de tu espacio de trabajo, dos veces: .json (una lista de objetos) y .csv\n"
            "           (UTF-8, con cabecera). En CSV, un texto que una hoja de cálculo tomaría por una fórmula\n"
            "           empieza con un apóstrofo. No se incluyen las claves de otros servicios, como la del modelo\n"
            "           de tu asistente.\n"
            "media/     tus archivos; media_files, en data/, dice a qué mensaje pertenece cada uno\n\n"
            "Filas de cada tabla:\n{tables}\n\nArchivos multimedia: {media}\n"
        ),
        "empty": "No hay ningún espacio de trabajo tuyo en nuestros servidores: aquí no hay contactos, chats ni"
        " mensajes.\n",
        "account": "account.json contiene lo que el propio servicio sabe de ti.",
    },
    "pt": {
        "title": "Seus dados, como estavam em {at}",
        "workspace": (
            "data/      todas as tabelas do seu espaço de trabalho, duas vezes: .json (uma lista de objetos) e .csv\n"
            "           (UTF-8, com cabeçalho). No CSV, um texto que uma planilha tomaria por fórmula começa com um\n"
            "           apóstrofo. Chaves de outros serviços, como a do modelo do seu assistente, ficam de fora.\n"
            "media/     seus arquivos; media_files, em data/, diz a que mensagem cada um pertence\n\n"
            "Linhas de cada tabela:\n{tables}\n\nArquivos de mídia: {media}\n"
        ),
        "empty": "Não há nenhum espaço de trabalho seu em nossos servidores: aqui não há contatos, conversas nem"
        " mensagens.\n",
        "account": "account.json contém o que o próprio serviço sabe de você.",
    },
}
