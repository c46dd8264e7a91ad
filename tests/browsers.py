"""The browser of the tests that need one."""

import shutil

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
"""Its path; None: there is none, and the tests are skipped."""
