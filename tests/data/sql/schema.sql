-- SPDX-License-Identifier: Apache-2.0
-- What the statements of corpus.txt are about.
CREATE SCHEMA app; CREATE SCHEMA "Odd.Name";
CREATE TABLE documents (id bigserial primary key, tenant text, title text, body text, ssn text, meta jsonb, tags text[], embedding vector(3), half halfvec(3), bits bit(64), created timestamptz default now(), tsv tsvector);
CREATE TABLE authors (id int primary key, name text, email text, embedding vector(3));
CREATE TABLE doc_authors (doc_id bigint, author_id int, primary key (doc_id, author_id));
CREATE TABLE app.secrets (id int primary key, token text, owner text);
CREATE TABLE "Odd.Name"."Mixed ""Case" (id int, "Col.Umn" text);
CREATE TABLE events (id int, day date, payload text) PARTITION BY RANGE (day);
CREATE TABLE events_2024 PARTITION OF events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE animals (id int, name text); CREATE TABLE dogs (breed text) INHERITS (animals);
CREATE VIEW public_docs AS SELECT id, title, embedding AS emb FROM documents WHERE tenant = 'public';
CREATE VIEW doc_names AS SELECT d.id, d.title, a.name, lower(a.email) AS mail FROM documents d JOIN doc_authors da ON da.doc_id = d.id JOIN authors a ON a.id = da.author_id;
CREATE VIEW over_view AS SELECT id, emb::text AS e FROM public_docs;
CREATE MATERIALIZED VIEW doc_counts AS SELECT tenant, count(*) AS n FROM documents GROUP BY tenant;
CREATE FUNCTION f_sql(int) RETURNS int LANGUAGE sql AS 'select $1';
CREATE FUNCTION f_plpgsql() RETURNS text LANGUAGE plpgsql AS 'begin return (select token from app.secrets limit 1); end';
CREATE FUNCTION app.lower(text) RETURNS text LANGUAGE sql AS 'select token from app.secrets limit 1';
CREATE VIEW bad_view AS SELECT id, f_plpgsql() AS x FROM documents;
CREATE TYPE mood AS ENUM ('a','b');
CREATE DOMAIN emb3 AS vector(3);
CREATE TABLE typed (id int primary key, e emb3, many vector(3)[], row_ documents);
CREATE TABLE ruled (id int); CREATE RULE r AS ON INSERT TO ruled DO ALSO DELETE FROM animals;
CREATE PROCEDURE p_do() LANGUAGE sql AS 'delete from animals';
CREATE SEQUENCE counter;
INSERT INTO documents (tenant,title,ssn,embedding) SELECT 't'||(i%3),'title'||i,'ssn'||i,ARRAY[i,i+1,1]::vector FROM generate_series(1,20) i;
CREATE TABLE app.chunks (id int primary key, doc bigint, body text, vec vector(3));
