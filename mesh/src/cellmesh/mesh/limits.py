"""Sizes and times both ends of a link must agree on."""

GUEST_MESSAGE_BYTES = 256 * 1024
"""Longest message to or from a guest."""

REPORT_BYTES = 72 * 1024
"""Longest message a guest may begin a call with or report; the longest report of the contract is a little shorter."""

SERVICE_MESSAGE_BYTES = 4 * 1024 * 1024
"""Longest message between services."""

METADATA_BYTES = 8 * 1024
"""Most metadata of a call, each way."""

USER_TOKEN_BYTES = 4 * 1024
"""Longest user token."""

PING_INTERVAL_MS = 20_000
"""How often clients ping an idle connection; a server that wants fewer answers ENHANCE_YOUR_CALM."""

NO_COMPRESSION = ("grpc.compression_enabled_algorithms_bitset", 1)
"""Option of a link to a guest: a little that unpacks to a lot is refused before it is unpacked."""
