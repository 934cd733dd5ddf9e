"""Names and ARNs that V1's SDK reads."""

from __future__ import annotations

import os

AUTH_TOKEN = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
MY_FUNCTION_ARN = os.environ.get("MY_FUNCTION_ARN")  # where there is none, the SDK answers by itself
ROUTER_FUNCTION_ARN = "arn:aws:lambda:::function:GGRouter"
SHADOW_FUNCTION_ARN = "arn:aws:lambda:::function:GGShadowService"
SECRETS_MANAGER_FUNCTION_ARN = "arn:aws:lambda:::function:GGSecretManager:1"
GG_DAEMON_PORT = os.environ.get("GG_DAEMON_PORT")
GGC_MAX_INTERFACE_VERSION = "1.5"
