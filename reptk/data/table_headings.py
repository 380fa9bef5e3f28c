"""Usual headings of the columns of a table of images."""

PATH_HEADINGS = (
    "path filepath imagepath imgpath file filename filenames imagefile imagefilename imagefilepath imagename imgname imgfile "
    "image img images photo picture relativepath"
)
LABEL_HEADINGS = (
    "classname categoryname labelname class category label labels target targets classlabel species y classid categoryid "
    "labelid classidx classindex"
)
HEADINGS = {
    "path": PATH_HEADINGS.split(),
    "label": LABEL_HEADINGS.split(),
    "id": ["id", "imageid", "imgid", "uid", "uuid", "key"],
    "split": ["split", "subset", "partition", "set"],
}
"""Headings of each column without spaces, `_` and `-`, the preferred one first."""


def heading_key(heading: str) -> str:
    """Return a heading in lower case, without spaces, `_` and `-`."""
    return "".join(letter for letter in heading.casefold() if letter not in " _-\t\ufeff")
