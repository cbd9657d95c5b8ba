"""What every page is made of: files of this package, plotly, and the content security policy."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

__all__ = ["asset", "plotly", "policy"]


def asset(name: str) -> str:
    """The text of a file that lies beside this module."""
    return files("offaxis.report").joinpath(name).read_text(encoding="utf-8")


def plotly() -> str:
    """plotly's own script from its installed package, in a form that may stand inside a page."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text.replace("\r\n", "\n").replace("</script", "<\\/script")


def policy(*scripts: str) -> str:
    """A content security policy that runs these scripts and fetches nothing."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
