"""The ARNs by which V1 code names functions, this one among them."""

from __future__ import annotations

import re
from typing import Final

from functions.config import Config

ARN: Final = re.compile(
    r"arn:(?P<partition>aws[a-z-]*):lambda:(?P<region>[a-z0-9-]*):(?P<account>[0-9]*)"
    r":function:(?P<name>[A-Za-z0-9_-]+)(:(?P<qualifier>[A-Za-z0-9$_-]+))?"
)
ROUTER: Final = "arn:aws:lambda:::function:GGRouter"
SHADOWS: Final = "arn:aws:lambda:::function:GGShadowService"
SECRETS: Final = "arn:aws:lambda:::function:GGSecretManager:1"


def of(config: Config) -> str:
    """The ARN of the worker's own function; made up where the deployment names a folder."""
    return config.arn if ARN.fullmatch(config.arn) else f"arn:aws:lambda:::function:{config.function}"


def name_of(arn: str) -> str:
    """The function's name."""
    match = ARN.fullmatch(arn)
    return match["name"] if match else arn


def qualifier_of(arn: str) -> str:
    """Its version or alias; empty where there is none."""
    match = ARN.fullmatch(arn)
    return (match["qualifier"] or "") if match else ""
