"""What makes a site of the documents: MkDocs calls the functions `on_…`.

The documents are read on GitHub too. So their links are those of the repository, and some pages stand at its top.
MkDocs knows one folder: the pages at the top are brought into it, and links are rewritten. A link to a file that is not
a page leads to a page that shows the file, or the files of the folder.
"""

import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

import mermaid_render
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: Python-Markdown takes one word behind the ticks; tests find blocks by a second one.
_NAMED_BLOCK = re.compile(r"^```(\w+) \w+$", re.MULTILINE)
#: GitHub needs | escaped in a table, in code too; Python-Markdown shows the backslash there.
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`]+`")
#: What a browser loads by itself.
_LOADED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=.?https?:[^>]*>")
#: The language in which a file is highlighted, if its ending does not say so.
_LANGUAGES = {"Procfile": "yaml", "Dockerfile": "dockerfile", ".mjs": "javascript", ".npmrc": "ini", ".service": "ini"}
#: Not worth reading.
_HIDDEN = {"package-lock.json"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the top of the repository, and what they and the others link to."""
    for path in sorted(ROOT.glob("*.md")):
        files.append(File.generated(config, path.name, abs_src_path=str(path)))
    for file in list(files.documentation_pages()):
        for target in _LINK.findall(file.content_string):
            place = _place(file.src_uri, target)
            if place is not None and (source := _source_page(place)) is not None and source not in files.src_uris:
                files.append(File.generated(config, source, content=_shown(place)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite what MkDocs does not read as GitHub does: links, drawings, tables, blocks with a name."""
    folder = posixpath.dirname(page.file.src_uri)

    def there(link: re.Match[str]) -> str:
        place = _place(page.file.src_uri, link[1])
        if place is None:
            return link[1]
        target = _source_page(place) or place.removeprefix("docs/")
        _, mark, anchor = link[1].partition("#")
        return posixpath.relpath(target, folder or ".") + mark + anchor

    if page.file.src_uri.startswith("source/"):
        return markdown
    markdown = _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)
    return _NAMED_BLOCK.sub(r"```\1", _MERMAID.sub(_drawing, _LINK.sub(there, markdown)))


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """Refuse a page for which a browser would ask another site."""
    if found := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output


def _place(page: str, link: str) -> str | None:
    """What in the repository a link of a page leads to; None: the page itself, or another site."""
    path = link.partition("#")[0]
    if not path or "://" in link:
        return None
    here = page if (ROOT / page).exists() else f"docs/{page}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), path))


def _source_page(place: str) -> str | None:
    """The page that shows a file or folder of the repository; None: it is a page or a picture itself, or not there."""
    if place.endswith((".md", ".png")) or not (ROOT / place).exists():
        return None
    return f"source/{place}.md"


def _shown(place: str) -> str:
    listed = subprocess.run(["git", "ls-files", place], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = [f"# {place}\n"]
    for path in map(Path, listed.stdout.splitlines()):
        if path.name in _HIDDEN:
            continue
        language = _LANGUAGES.get(path.suffix or path.name, path.suffix.removeprefix("."))
        title = f"## {path.relative_to(place)}\n\n" if (ROOT / place).is_dir() else ""
        parts.append(f"{title}````{language}\n{(ROOT / path).read_text()}````\n")
    if len(parts) == 1:
        raise PluginError(f"a page links to {place}, and git knows no such file")
    return "\n".join(parts)


def _drawing(block: re.Match[str]) -> str:
    """A Mermaid block as SVG: drawn here, so that no reader's browser has to load a program for it."""
    svg = mermaid_render.mermaid_to_svg(block[1]).decode()
    return f'<div class="drawing">{svg}</div>'
