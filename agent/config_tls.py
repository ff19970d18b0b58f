# SPDX-License-Identifier: Apache-2.0
"""`tls:` of a guard, as it is written in the configuration. Owns which keys go together, reads no file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Tls(BaseModel):
    """Towards clients: `cert`, `key`, `client_*`. Towards the database: `server*`, `ca`, `present_*`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    cert: Path | None = None  # PEM: the certificate clients see, and its chain
    key: Path | None = None
    client_cert: Literal["none", "request", "require"] = "none"
    client_ca: Path | None = None  # PEM: who may have signed a client's certificate
    server: Literal["off", "require", "verify"] = "off"
    ca: Path | None = None  # PEM: who may have signed the database's certificate, or that certificate itself
    server_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    present_cert: Path | None = None  # PEM: the certificate that the database is shown
    present_key: Path | None = None

    @model_validator(mode="after")
    def _together(self) -> Tls:
        for one, other in (("cert", "key"), ("present_cert", "present_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"`{one}` and `{other}` go together")
        if self.client_cert != "none" and (self.cert is None or self.client_ca is None):
            raise ValueError(f"`client_cert: {self.client_cert}` needs `client_ca`, and `cert` and `key`")
        if self.client_cert == "none" and self.client_ca is not None:
            raise ValueError("`client_ca` does nothing without `client_cert: request` or `require`")
        if (self.server == "verify") != (self.ca is not None):
            raise ValueError("`server: verify` and `ca` go together: the file says whom to believe")
        if self.server == "off" and (self.server_name or self.present_cert):
            raise ValueError("`server_name` and `present_cert` do nothing with `server: off`")
        return self

    @property
    def is_used(self) -> bool:
        return self.cert is not None or self.server != "off"
