-- Up Migration
CREATE TABLE users (id serial PRIMARY KEY, email text NOT NULL UNIQUE);

-- Down Migration
DROP TABLE users;
