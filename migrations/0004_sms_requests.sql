-- Templates and send requests.

create table onceflow.sms_template (
    tenant      text        not null,
    template_id text        not null,
    version     integer     not null,
    -- Approved sender name, shown in brackets before the text.
    signature   text        not null,
    class       text        not null,
    -- Every ${name} of the body, in any order.
    params      text[]      not null,
    body        text        not null,
    -- Only approved versions are used; a withdrawn one stays for the requests that name it.
    state       text        not null default 'approved',
    created_at  timestamptz not null default clock_timestamp(),
    constraint sms_template_pkey primary key (tenant, template_id, version),
    constraint sms_template_version_positive check (version > 0),
    constraint sms_template_class_known check (class in ('OTP', 'TRANSACTIONAL', 'MARKETING')),
    constraint sms_template_state_known check (state in ('approved', 'withdrawn'))
);

-- Three templates of the tenant 'default', so that the samples and the demo work on an empty database. Withdraw them
-- (state = 'withdrawn') where nobody may use them.
insert into onceflow.sms_template (tenant, template_id, version, signature, class, params, body) values
    ('default', 'login_code',  1, 'Onceflow', 'OTP',           '{code,minutes}',
     'Your code is ${code}. It is valid for ${minutes} minutes. Tell it to nobody.'),
    ('default', 'order_paid',  1, 'Onceflow', 'TRANSACTIONAL', '{order,amount}',
     'Your order ${order} over ${amount} is paid. Thank you.'),
    ('default', 'spring_sale', 1, '万事通',   'MARKETING',     '{name}',
     '${name}，春季特惠已经开始，全场八折。拒收请回复R');

-- One row per request, whatever was decided.
create table onceflow.sms_request (
    tenant           text        not null,
    request_id       text        not null,
    -- SHA-256 of what was asked for: the same id with another request is refused.
    fingerprint      bytea       not null,
    -- SHA-256 of number, template and parameters: the same text again within seconds is refused under any id.
    content          bytea,
    state            text        not null,
    reason           text,
    -- E.164; null where the number could not be understood.
    phone            text,
    -- As it was given. Both columns are personal data: no log, message or event repeats them.
    phone_given      text        not null,
    template_id      text        not null,
    template_version integer,
    class            text,
    signature        text,
    -- Null once there is nothing to send: one-time passwords are not kept for rejected requests.
    params           jsonb,
    encoding         text,
    segments         integer,
    expires_at       timestamptz,
    -- The event that asked, and the business case that it belongs to.
    event_id         text        not null,
    correlation_id   text,
    requested_at     timestamptz not null default clock_timestamp(),
    constraint sms_request_pkey primary key (tenant, request_id),
    constraint sms_request_state_known check (state in ('accepted', 'rejected')),
    constraint sms_request_phone_is_e164 check (phone ~ '^\+[1-9][0-9]{7,14}$'),
    constraint sms_request_accepted_whole check (state <> 'accepted' or (reason is null
        and num_nulls(content, phone, template_version, class, signature, params, encoding, segments, expires_at) = 0)),
    constraint sms_request_rejected_with_reason check (state <> 'rejected' or (reason is not null and params is null))
);
create index sms_request_recent_content on onceflow.sms_request (tenant, content, requested_at) where state = 'accepted';
create index sms_request_by_phone on onceflow.sms_request (tenant, phone, requested_at);
