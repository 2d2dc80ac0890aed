"""moto's server, mended in two places where it asks for keys.

It lacks GetObjectRetention, and answers that with the object's own bytes. And it breaks on an address that is signed in its
query; here it refuses one, as stores do whose owners forbid them: clients then sign the request itself.
"""

from __future__ import annotations

import sys
from typing import Any

from moto.s3.responses import S3Response
from moto.server import main

RETENTION = "<Retention><Mode>{mode}</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
NO_RETENTION = "<Error><Code>NoSuchObjectLockConfiguration</Code><Message>no retention is set</Message></Error>"
NO_SIGNED_ADDRESS = "<Error><Code>AccessDenied</Code><Message>sign the request</Message></Error>"
answer_get = S3Response._key_response_get


def _key_response_get(self: S3Response, query: dict[str, Any], key_name: str) -> Any:
    if "Authorization" not in self.headers:
        return 403, {"content-type": "application/xml"}, NO_SIGNED_ADDRESS
    if "retention" not in query:
        return answer_get(self, query, key_name)
    self._set_action("KEY", "GET", query)
    self._authenticate_and_authorize_s3_action(bucket_name=self.bucket_name, key_name=key_name)
    key, _ = self._get_key()
    headers = {"content-type": "application/xml"}
    if not key.lock_until:
        return 404, headers, NO_RETENTION
    return 200, headers, RETENTION.format(mode=key.lock_mode, until=key.lock_until)


if __name__ == "__main__":
    S3Response._key_response_get = _key_response_get  # type: ignore[method-assign]
    main(sys.argv[1:])
