"""Take a picture of a report with the Chromium of this machine: for the README, and to look at a change in light, dark and narrow.

python scripts/screenshot_report.py demo/report.html docs/report.png
python scripts/screenshot_report.py demo/report.html /tmp/narrow.png --dark --width 380 --height 4000
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
NARROWEST = 500  # a headless window cannot be narrower, so a narrow page is shown in a frame


def main() -> int:
    parser = argparse.ArgumentParser(description="Take a picture of a report.")
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1120, help="of the page, in pixels")
    parser.add_argument("--height", type=int, default=1000, help="in pixels, from the top")
    parser.add_argument("--dark", action="store_true", help="as a reader with a dark screen sees it")
    options = parser.parse_args()
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        print(f"There is no browser here (looked for {', '.join(NAMES)}). Install Chromium.", file=sys.stderr)
        return 2
    if not options.report.exists():
        print(f"{options.report}: there is no such file. Run preftune demo first.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        page = options.report.resolve().as_uri()
        if options.width < NARROWEST:
            frame = Path(folder) / "frame.html"
            size = f"width:{options.width}px;height:{options.height}px"
            frame.write_text(f'<body style="margin:0"><iframe src="{page}" style="border:0;{size}"></iframe>', encoding="utf-8")
            page = frame.as_uri()
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
            f"--user-data-dir={folder}/profile", f"--blink-settings=preferredColorScheme={0 if options.dark else 1}",
            f"--window-size={max(options.width, NARROWEST)},{options.height}", f"--screenshot={options.picture.resolve()}", page,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    print(options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
