--liquibase formatted sql

--changeset ann:1
CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL UNIQUE);
--rollback DROP TABLE users;

--changeset ann:2
CREATE TABLE orders (id serial PRIMARY KEY, user_id integer NOT NULL REFERENCES users (id));
--rollback DROP TABLE orders;
