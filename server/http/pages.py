"""Routes of the playground and the API page, which may load scripts, styles and pictures from this server alone."""

from fastapi import APIRouter, Response
from starlette.requests import Request

from blora.server.web.files import page_files

__all__ = ["CONTENT_SECURITY_POLICY", "PAGE_PATHS", "router"]

# `trusted-types 'none'`: the browser refuses scripts that turn a text into HTML, such as innerHTML.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

_FILES = page_files()

PAGE_PATHS = frozenset(_FILES)
"""Paths of the pages and their files, which show nothing about requests or adapters."""

router = APIRouter()


async def _page(request: Request) -> Response:
    file = _FILES[request.scope["path"]]
    return Response(
        file.content, media_type=file.media_type, headers={"content-security-policy": CONTENT_SECURITY_POLICY}
    )


for _path in sorted(PAGE_PATHS):
    router.add_api_route(_path, _page, include_in_schema=False)
