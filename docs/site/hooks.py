"""Hooks of MkDocs: pages that lie beside docs/, and links to files that are no pages.

The repository's documents link to each other by their places in it. The site has README.md and its
kin as pages too; a link to a source file becomes its name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from events import events_page
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
# Documents outside of docs/, and their pages.
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "examples/demo-model/README.md": "demo-model.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)((?:#[^)\s]*)?)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside of docs/, and the page of log events."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=relink(text, source, page)))
    files.append(File.generated(config, "reference/events.md", content=events_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Relink a document of docs/."""
    name = page.file.src_uri
    return markdown if name in OUTSIDE.values() else relink(markdown, f"docs/{name}", name)


def relink(markdown: str, source: str, page: str) -> str:
    """Turn links between files of the repository into links between pages.

    `source` is the document's path in the repository, `page` its page's path in the site.
    """

    def replace(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in OUTSIDE:
            to = OUTSIDE[path]
        elif path.startswith("docs/") and (ROOT / path).is_file():
            to = path.removeprefix("docs/")
        else:
            return text if text.startswith("`") else f"{text} (`{path}`)"
        return f"{mark}[{text}]({posixpath.relpath(to, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(replace, markdown)
