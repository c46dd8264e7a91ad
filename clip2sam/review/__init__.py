"""A run as a page: one folder that opens from disk, without a server and without a network.

    page      `write_report`: the page's files, written together
    rows      what the page is told of an image and of the run, as JSON
    pictures  the small images

`page.html`, `page.css`, `data.js` (what is asked of the data) and `page.js` (what is drawn) are the
page itself. It asks for data by adding scripts, as a page from disk may not fetch files. Every text
goes into it as text, never as HTML.
"""
