create table orders (id serial primary key, user_id integer not null references users (id));
