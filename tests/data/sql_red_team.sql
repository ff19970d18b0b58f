-- SPDX-License-Identifier: Apache-2.0
-- What the red team's statements run against. Every forbidden cell holds a canary of its own.
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE docs (
    id int PRIMARY KEY,
    tenant text NOT NULL,
    title text,
    email text UNIQUE,
    phone varchar(40),
    note text,
    salary int,
    meta jsonb,
    embedding vector(8)
);
CREATE TABLE notes (
    id int PRIMARY KEY,
    tenant text NOT NULL,
    doc_id int REFERENCES docs (id),
    email text,
    body text
);
CREATE TABLE parts (id int, tenant text NOT NULL, body text, PRIMARY KEY (id, tenant)) PARTITION BY LIST (tenant);
CREATE TABLE parts_acme PARTITION OF parts FOR VALUES IN ('acme');
CREATE TABLE parts_other PARTITION OF parts FOR VALUES IN ('other');
INSERT INTO docs VALUES
    (1, 'acme', 'first', 'canary-email-1@example.org', 'canary-phone-1', 'canary-note-tail', 918273645,
     '{"ssn": "canary-meta-1", "k": 1}', '[0.7182818,0.5772156,0.3141592,0.1618033,0.4142135,0.2360679,0.6931471,0.9159655]'),
    (2, 'acme', 'second', 'canary-email-2@example.org', 'canary-phone-2', 'canary-note-tail', 918273646,
     '{"ssn": "canary-meta-2", "k": 2}', '[0.6180339,0.8414709,0.1234567,0.7654321,0.2718281,0.5671432,0.1313131,0.4669201]'),
    (3, 'other', 'canary-tenant-title', 'canary-tenant-email', 'canary-tenant-phone', 'canary-tenant-note',
     827364519, '{"ssn": "canary-tenant-meta", "k": 3}', '[0.3333331,0.1111117,0.9090909,0.4545454,0.8181818,0.2727272,0.6363636,0.7272727]');
INSERT INTO notes VALUES
    (1, 'acme', 1, 'n1@example.org', 'plain'),
    (2, 'other', 3, 'canary-tenant-notemail', 'canary-tenant-body');
INSERT INTO parts VALUES (1, 'acme', 'plain'), (2, 'other', 'canary-tenant-part');
CREATE VIEW contacts AS SELECT id, tenant, email AS reach, upper(title) AS shout FROM docs;
CREATE VIEW titles AS SELECT id, tenant, title FROM docs;
CREATE INDEX ON docs USING hnsw (embedding vector_cosine_ops);
ANALYZE;
