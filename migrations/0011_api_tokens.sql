-- Who may use the API, and for what. The token itself is told once and never stored.
create table onceflow.api_token (
    id         uuid        not null primary key,
    name       text        not null,
    role       text        not null,
    -- SHA-256 of the token, which has 256 random bits of its own.
    hash       bytea       not null,
    created_at timestamptz not null default clock_timestamp(),
    created_by text        not null,
    revoked_at timestamptz,
    revoked_by text,
    constraint api_token_role_known check (role in ('viewer', 'operator', 'admin')),
    constraint api_token_hash unique (hash),
    constraint api_token_revoked_whole check ((revoked_at is null) = (revoked_by is null))
);
-- A name can be given again once its token is revoked.
create unique index api_token_name on onceflow.api_token (name) where revoked_at is null;
