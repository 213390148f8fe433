"""HTTP interface of one replica: routes, request bodies, response schemas, errors and the two HTML pages."""
