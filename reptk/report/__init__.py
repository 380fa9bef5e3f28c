"""A run, or several next to each other, as one self-contained HTML page: `write(["runs/a", "runs/b"])`.

The page consists of sections. `section_NAME.py` prepares the numbers, texts and images of one section as plain data, and
`templates/NAME.html.j2` lays them out. So a wrong number is fixed in the section's Python file, and the look of it in the
template or in `page.css`. `page.py` puts the sections together; `page.js` and `map.js` make the page interactive.
"""

from reptk.report.write_report import write

__all__ = ["write"]
