# SPDX-License-Identifier: Apache-2.0
"""What functions, operators and system relations do: the allow-lists.

Owns the tables; who walks a statement asks `function` and `system_relation`. Made from pg_proc and
pg_class of PostgreSQL 18 and read through by hand: `PURE` functions compute from their arguments and from
facts of the session alone. Functions that run a text as SQL (``query_to_xml``, ``ts_stat``,
``ts_rewrite``), read by a relation's name (``table_to_xml``), read files (``pg_read_file``) or reach other
servers (``dblink``) are not in the lists. Bias: what is not listed is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from policy.model import Action


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


PURE: Final = _set(
    """
    abbrev abs acldefault aclexplode acos acosd acosh age area array_append array_cat array_dims array_fill
    array_length array_lower array_ndims array_position array_positions array_prepend array_remove
    array_replace array_reverse array_sample array_shuffle array_sort array_to_json array_to_string
    array_to_tsvector array_upper arraycontained arraycontains arrayoverlap ascii asin asind asinh atan
    atan2 atan2d atand atanh bit bit_count bit_length bool box bpchar broadcast btrim bytea cardinality
    casefold cash_words cbrt ceil ceiling center char char_length character_length chr cidr circle
    clock_timestamp concat concat_ws convert convert_from convert_to cos cosd cosh cot cotd crc32 crc32c
    current_database current_schema current_schemas current_setting current_user currval date
    date_add date_bin date_part date_subtract date_trunc datemultirange daterange decode degrees diagonal
    diameter div encode enum_first enum_last enum_range erf erfc exp extract factorial family float4 float8
    floor format format_type gamma gcd gen_random_uuid generate_series generate_subscripts get_bit get_byte
    get_current_ts_config getdatabaseencoding getpgusername has_any_column_privilege has_column_privilege
    has_database_privilege has_foreign_data_wrapper_privilege has_function_privilege has_language_privilege
    has_parameter_privilege has_schema_privilege has_sequence_privilege has_server_privilege
    has_table_privilege has_tablespace_privilege has_type_privilege height host hostmask icu_unicode_version
    inet_client_addr inet_client_port inet_server_addr inet_server_port initcap int2 int4 int4multirange
    int4range int8 int8multirange int8range interval is_normalized isclosed isempty isfinite ishorizontal
    isopen isparallel isperp isvertical json_array_elements json_array_elements_text json_array_length
    json_build_array json_build_object json_each json_each_text json_extract_path json_extract_path_text
    json_object json_object_field json_object_field_text json_object_keys json_populate_record
    json_populate_recordset json_strip_nulls json_to_record json_to_recordset json_to_tsvector json_typeof
    jsonb_array_elements jsonb_array_elements_text jsonb_array_length jsonb_build_array jsonb_build_object
    jsonb_concat jsonb_contains jsonb_each jsonb_each_text jsonb_exists jsonb_exists_all jsonb_exists_any
    jsonb_extract_path jsonb_extract_path_text jsonb_insert jsonb_object jsonb_object_field
    jsonb_object_field_text jsonb_object_keys jsonb_path_exists jsonb_path_exists_tz jsonb_path_match
    jsonb_path_match_tz jsonb_path_query jsonb_path_query_array jsonb_path_query_array_tz
    jsonb_path_query_first jsonb_path_query_first_tz jsonb_path_query_tz jsonb_populate_record
    jsonb_populate_record_valid jsonb_populate_recordset jsonb_pretty jsonb_set jsonb_set_lax
    jsonb_strip_nulls jsonb_to_record jsonb_to_recordset jsonb_to_tsvector jsonb_typeof justify_days
    justify_hours justify_interval lastval lcm left length lgamma like like_escape line ln log log10 lower
    lower_inc lower_inf lpad lseg ltrim macaddr macaddr8 macaddr8_set7bit make_date make_interval make_time
    make_timestamp make_timestamptz makeaclitem masklen md5 min_scale mod money multirange mxid_age name
    netmask network normalize notlike now npoints num_nonnulls num_nulls numeric numeric_div_trunc
    nummultirange numnode numrange octet_length oid oidvectortypes overlaps overlay parse_ident path pclose
    pg_backend_pid pg_basetype pg_blocking_pids pg_char_to_encoding pg_client_encoding pg_collation_for
    pg_collation_is_visible pg_column_compression pg_column_size pg_conf_load_time pg_conversion_is_visible
    pg_current_snapshot pg_current_xact_id pg_current_xact_id_if_assigned pg_encoding_max_length
    pg_encoding_to_char pg_function_is_visible pg_get_userbyid pg_has_role pg_input_error_info
    pg_input_is_valid pg_is_in_recovery pg_is_other_temp_schema pg_jit_available pg_listening_channels
    pg_lsn pg_my_temp_schema pg_opclass_is_visible pg_operator_is_visible pg_opfamily_is_visible
    pg_options_to_table pg_postmaster_start_time pg_safe_snapshot_blocking_pids pg_size_bytes pg_size_pretty
    pg_snapshot_xip pg_snapshot_xmax pg_snapshot_xmin pg_statistics_obj_is_visible pg_table_is_visible
    pg_timezone_names pg_trigger_depth pg_ts_config_is_visible pg_ts_dict_is_visible pg_ts_parser_is_visible
    pg_ts_template_is_visible pg_type_is_visible pg_typeof pg_visible_in_snapshot pg_xact_status
    phraseto_tsquery pi plainto_tsquery point polygon popen position pow power quote_ident quote_literal
    quote_nullable radians radius random random_normal range_contains range_merge regclass regexp_count
    regexp_instr regexp_like regexp_match regexp_matches regexp_replace regexp_split_to_array
    regexp_split_to_table regexp_substr repeat replace reverse right round row_security_active row_to_json
    rpad rtrim scale session_user set_bit set_byte set_masklen setseed setweight sha224 sha256 sha384 sha512
    sign similar_escape similar_to_escape sin sind sinh slope split_part sqrt starts_with
    statement_timestamp string_to_array string_to_table strip strpos substr substring system_user tan tand
    tanh text textlen textregexeq time timeofday timestamp timestamptz timetz timezone to_ascii to_bin
    to_char to_date to_hex to_json to_jsonb to_number to_oct to_regclass to_regcollation to_regnamespace
    to_regoper to_regoperator to_regproc to_regprocedure to_regrole to_regtype to_regtypemod to_timestamp
    to_tsquery to_tsvector transaction_timestamp translate trim_array trim_scale trunc ts_delete ts_filter
    ts_headline ts_rank ts_rank_cd tsmultirange tsquery_phrase tsrange tstzmultirange tstzrange
    tsvector_to_array txid_current txid_current_if_assigned txid_current_snapshot txid_snapshot_xip
    txid_snapshot_xmax txid_snapshot_xmin txid_status txid_visible_in_snapshot unicode_assigned
    unicode_version unistr unnest upper upper_inc upper_inf uuid_extract_timestamp uuid_extract_version
    uuidv4 uuidv7 varbit varchar version websearch_to_tsquery width width_bucket xid xml xml_is_well_formed
    xml_is_well_formed_content xml_is_well_formed_document xmlcomment xmlconcat xmlexists xmltext xpath
    xpath_exists
    """
)
"""Functions of pg_catalog that read nothing but their arguments (and session facts), and write nothing."""

AGGREGATES: Final = _set(
    """
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp
    cume_dist dense_rank every first_value json_agg json_agg_strict json_object_agg json_object_agg_strict
    json_object_agg_unique json_object_agg_unique_strict jsonb_agg jsonb_agg_strict jsonb_object_agg
    jsonb_object_agg_strict jsonb_object_agg_unique jsonb_object_agg_unique_strict lag last_value lead max
    min mode nth_value ntile percent_rank percentile_cont percentile_disc range_agg range_intersect_agg rank
    regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number
    stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance xmlagg
    """
)
"""Aggregates and window functions of pg_catalog; any that no GROUP BY stands beside gives one row."""
WINDOW: Final = _set(
    """
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    """
)

COUNTS: Final = frozenset(
    ["count", "num_nonnulls", "num_nulls", "pg_typeof", "grouping", "row_number", "rank", "dense_rank"]
)
"""What they give tells only whether, or how often, their argument is there."""

SETS: Final = _set(
    """
    aclexplode generate_series generate_subscripts json_array_elements json_array_elements_text json_each
    json_each_text json_object_keys json_populate_recordset json_to_recordset jsonb_array_elements
    jsonb_array_elements_text jsonb_each jsonb_each_text jsonb_object_keys jsonb_path_query
    jsonb_path_query_tz jsonb_populate_recordset jsonb_to_recordset pg_listening_channels
    pg_options_to_table pg_timezone_names regexp_matches regexp_split_to_table string_to_table unnest
    pg_snapshot_xip txid_snapshot_xip pg_get_keywords pg_partition_tree pg_partition_ancestors
    """
)
"""Set-returning: they make many rows of one."""

DISTANCES: Final = _set(
    """
    l2_distance cosine_distance inner_product l1_distance hamming_distance jaccard_distance
    vector_l2_squared_distance vector_negative_inner_product vector_spherical_distance
    halfvec_l2_squared_distance halfvec_negative_inner_product halfvec_spherical_distance
    sparsevec_l2_squared_distance sparsevec_negative_inner_product
    """
)
"""Distance functions of the extension vector (pgvector 0.8, sql/vector.sql)."""
DISTANCE_OPERATORS: Final = frozenset({"<->", "<#>", "<=>", "<+>", "<~>", "<%>"})

EXTENSIONS: Final = _set(
    """
    vector pg_trgm unaccent uuid-ossp pgcrypto fuzzystrmatch citext hstore ltree intarray cube earthdistance
    isn seg btree_gin btree_gist plpgsql
    """
)
"""Extensions whose functions all are PURE. Not among them: dblink, lo, tablefunc, xml2, file_fdw."""
NOT_PURE: Final = frozenset({"plpgsql_call_handler", "plpgsql_inline_handler", "plpgsql_validator"})


@dataclass(frozen=True, slots=True)
class Deed:
    """What a call does beside computing: an action, and where its argument names it, on which relation."""

    action: Action
    everything: bool = False  # it touches what no name in the statement tells: collections are *
    named: bool = False  # its first argument names a relation (regclass)


def _deeds(action: Action, names: str, *, everything: bool = False, named: bool = False) -> dict[str, Deed]:
    return dict.fromkeys(names.split(), Deed(action, everything, named))


DEEDS: Final[dict[str, Deed]] = {
    **_deeds(
        Action.SESSION,
        """
        pg_sleep pg_sleep_for pg_sleep_until pg_notify pg_notification_queue_usage pg_export_snapshot
        pg_advisory_lock pg_advisory_lock_shared pg_advisory_unlock pg_advisory_unlock_all
        pg_advisory_unlock_shared pg_advisory_xact_lock pg_advisory_xact_lock_shared pg_try_advisory_lock
        pg_try_advisory_lock_shared pg_try_advisory_xact_lock pg_try_advisory_xact_lock_shared set_config
        """,
    ),
    **_deeds(
        Action.SCHEMA,
        """
        col_description obj_description shobj_description pg_describe_object pg_identify_object
        pg_identify_object_as_address pg_get_object_address pg_get_acl pg_get_constraintdef pg_get_expr
        pg_get_function_arg_default pg_get_function_arguments pg_get_function_identity_arguments
        pg_get_function_result pg_get_function_sqlbody pg_get_functiondef pg_get_indexdef pg_get_keywords
        pg_get_partition_constraintdef pg_get_partkeydef pg_get_publication_tables
        pg_get_replica_identity_index pg_get_ruledef pg_get_serial_sequence pg_get_statisticsobjdef
        pg_get_statisticsobjdef_columns pg_get_statisticsobjdef_expressions pg_get_triggerdef pg_get_viewdef
        pg_get_catalog_foreign_keys pg_index_column_has_property pg_index_has_property
        pg_indexam_has_property pg_relation_is_publishable pg_relation_is_updatable
        pg_column_is_updatable pg_sequence_parameters pg_sequence_last_value pg_get_sequence_data
        pg_available_extensions
        pg_available_extension_versions pg_extension_update_paths pg_partition_root pg_partition_tree
        pg_partition_ancestors pg_relation_size pg_table_size pg_indexes_size pg_total_relation_size
        pg_database_size pg_tablespace_size pg_tablespace_databases pg_tablespace_location
        pg_relation_filenode pg_relation_filepath pg_filenode_relation pg_collation_actual_version
        pg_database_collation_actual_version pg_show_all_settings pg_settings_get_flags
        ts_parse ts_token_type
        """,
        everything=True,
    ),
    **_deeds(
        Action.ADMIN,
        """
        pg_cancel_backend pg_terminate_backend pg_reload_conf pg_rotate_logfile pg_switch_wal
        pg_create_restore_point pg_backup_start pg_backup_stop pg_promote pg_wal_replay_pause
        pg_wal_replay_resume pg_log_backend_memory_contexts pg_stat_reset pg_stat_reset_shared
        pg_stat_reset_single_table_counters pg_stat_reset_single_function_counters pg_stat_reset_slru
        pg_stat_get_activity pg_stat_get_backend_activity pg_lock_status pg_prepared_xact
        pg_current_wal_lsn pg_current_wal_insert_lsn pg_current_wal_flush_lsn pg_last_wal_receive_lsn
        pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_control_system pg_control_checkpoint
        pg_hba_file_rules pg_ident_file_mappings pg_show_all_file_settings brin_summarize_new_values
        brin_summarize_range brin_desummarize_range gin_clean_pending_list pg_import_system_collations
        pg_create_physical_replication_slot pg_create_logical_replication_slot pg_drop_replication_slot
        pg_get_replication_slots pg_stat_get_wal_senders pg_logical_emit_message pg_current_logfile
        """,
        everything=True,
    ),
    **_deeds(Action.WRITE, "nextval setval", named=True),
    **_deeds(
        Action.SCAN, "lo_get loread lo_open lo_lseek lo_lseek64 lo_tell lo_tell64 lo_close", everything=True
    ),
    **_deeds(
        Action.WRITE,
        "lo_create lo_creat lo_from_bytea lo_put lowrite lo_truncate lo_truncate64",
        everything=True,
    ),
    **_deeds(Action.DELETE, "lo_unlink", everything=True),
}
"""Functions of pg_catalog that do something, and what. Large objects belong to no relation: ``*``."""

# System relations. What a client reads to find its way after connecting is `session`; what tells the shape
# of the database is `schema`; what holds rows' values or other clients' statements is `unknown` or `admin`.

_SESSION: Final = _set(
    """
    pg_type pg_range pg_enum pg_namespace pg_class pg_attribute pg_proc pg_extension pg_collation pg_database
    pg_settings pg_language pg_am pg_opclass pg_timezone_names pg_timezone_abbrevs
    """
)
_SCHEMA: Final = _set(
    """
    pg_aggregate pg_amop pg_amproc pg_attrdef pg_auth_members pg_available_extension_versions
    pg_available_extensions pg_cast pg_constraint pg_conversion pg_db_role_setting pg_default_acl pg_depend
    pg_description pg_event_trigger pg_foreign_data_wrapper pg_foreign_table pg_group pg_index
    pg_indexes pg_inherits pg_init_privs pg_largeobject_metadata pg_matviews pg_operator pg_opfamily
    pg_parameter_acl pg_partitioned_table pg_policies pg_policy pg_publication pg_publication_namespace
    pg_publication_rel pg_publication_tables pg_rewrite pg_roles pg_rules pg_seclabel pg_seclabels
    pg_sequence pg_sequences pg_shdepend pg_shdescription pg_shseclabel pg_statistic_ext
    pg_subscription_rel pg_tables pg_tablespace pg_transform pg_trigger pg_ts_config pg_ts_config_map
    pg_ts_dict pg_ts_parser pg_ts_template pg_user pg_views
    """
)
_ADMIN: Final = _set(
    """
    pg_authid pg_shadow pg_foreign_server pg_user_mapping pg_user_mappings pg_subscription pg_locks
    pg_prepared_xacts pg_file_settings pg_hba_file_rules pg_ident_file_mappings pg_config
    pg_replication_origin pg_replication_origin_status pg_replication_slots pg_shmem_allocations
    pg_shmem_allocations_numa pg_backend_memory_contexts pg_aios pg_wait_events
    """
)


def system_relation(schema: str, name: str) -> Action:
    """What reading a relation of pg_catalog or information_schema is. Writing one is `unknown`."""
    if schema == "information_schema":
        return Action.SCHEMA
    if name in _SESSION:
        return Action.SESSION
    if name in _SCHEMA:
        return Action.SCHEMA
    if name in _ADMIN or name.startswith(("pg_stat_", "pg_statio_")):
        return Action.ADMIN
    # pg_statistic, pg_stats, pg_largeobject (values of rows); pg_cursors, pg_prepared_statements (texts as
    # they were forwarded, with the values of policy's filters).
    return Action.UNKNOWN


# Settings.

ROLES: Final = frozenset({"role", "session_authorization"})
"""Settings that take another role's rights: who logged in is not whose rights the database then goes by."""
PATH: Final = ROLES | {"search_path"}
"""Settings that change what a name means."""
READING: Final = frozenset({"standard_conforming_strings", "client_encoding"})
"""Settings that change how a text is read: only to the values that we read by."""
ORDERS: Final = _set(
    """
    allow_in_place_tablespaces allow_system_table_mods archive_command ignore_checksum_failure
    ignore_system_indexes lo_compat_privileges local_preload_libraries session_preload_libraries
    dynamic_library_path session_replication_role zero_damaged_pages ignore_invalid_pages log_statement
    log_min_messages log_min_error_statement log_min_duration_statement temp_tablespaces
    """
)
"""Settings that are an administrator's."""


def function(schema: str | None, name: str) -> Deed | bool:
    """What a function of pg_catalog does: True nothing but computing, False not known."""
    if schema not in (None, "pg_catalog"):
        return False
    deed = DEEDS.get(name)
    return deed if deed is not None else name in PURE or name in AGGREGATES
