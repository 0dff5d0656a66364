"""The three ways things go wrong that the rest of the house distinguishes."""


class Refused(Exception):
    """What was asked for is not granted; asking the same again will not help.

    `code` is for programs (`email_taken`), `reason` a sentence that tells a person what to do, `fields` the same
    sentence for each input at fault.
    """

    def __init__(self, code: str, reason: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.fields = fields


class Lost(Exception):
    """Something outside did not answer as it should; trying again later may help."""


class Misconfigured(Exception):
    """The service can not start as it is configured: `faults` holds one clear line for each wrong value."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults
