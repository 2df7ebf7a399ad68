"""``tuili batch``: a file of requests, answered row by row into another file. Knows no server of ours."""
