"""A report as a browser would find it."""

import base64
import csv
import io
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements with attributes, text by element and by section, tables to download by file name."""

    def __init__(self, content):
        super().__init__()
        self.open, self.elements, self.texts, self.figures = [], [], {}, []
        self.sections, self.strong = {}, []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections[attributes["id"]] = ""
        if tag == "figure":
            self.figures.append([])
        if "figure" in self.open:
            self.figures[-1].append((tag, attributes))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.texts[tag] = self.texts.get(tag, "") + data
        if "section" in self.open:
            self.sections[[*self.sections][-1]] += data
        if self.open and self.open[-1] == "strong":
            self.strong.append(data)

    def attributes(self, *names):
        return [value for _, attributes in self.elements for name, value in attributes.items() if name in names]

    @property
    def tables(self):
        links = [attributes for tag, attributes in self.elements if tag == "a" and "download" in attributes]
        return {link["download"]: list(csv.DictReader(io.StringIO(decoded(link["href"])))) for link in links}


def decoded(uri):
    return base64.b64decode(uri.split("base64,")[1]).decode()
