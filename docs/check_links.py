"""Check that all links within the built pages lead somewhere: ``check_links.py FOLDER``."""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page refers to, and the places in it that can be referred to."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        """Note links, pictures and identifiers."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name == "id":
                self.places.add(value)


page = cache(Page)


def broken(path: Path) -> list[str]:
    """Return the links of a page that lead nowhere; those to other sites are not looked at."""
    found = []
    for link in page(path).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = path
        if parts.path:
            target = (path.parent / unquote(parts.path)).resolve()
        exists = target.is_file()
        fragment = unquote(parts.fragment)
        if exists and fragment and target.suffix == ".html":
            exists = fragment in page(target).places
        if not exists:
            found.append(f"{path.name}: {link}")
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1]).resolve()
    # the theme keeps templates among its static files
    pages = sorted(path for path in root.rglob("*.html") if "_static" not in path.parts)
    if not pages:
        sys.exit(f"There are no pages in {sys.argv[1]}")
    if lost := [link for path in pages for link in broken(path)]:
        sys.exit("These links lead nowhere:\n  " + "\n  ".join(lost))
    sys.stdout.write(f"All links within {len(pages)} pages lead somewhere.\n")
