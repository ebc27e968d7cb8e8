//! JSON checked against a JSON Schema, as far as the project's own schemas use it. A keyword that is not known fails, and so
//! does a property that the schema does not describe.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Checks `value`, which is at `place`.
pub fn check(schema: &Value, value: &Value, place: &str) -> Result<()> {
    let rules = schema.as_object().with_context(|| format!("{place}: the schema is no object"))?;
    for (keyword, rule) in rules {
        match keyword.as_str() {
            "$schema" | "title" | "description" | "properties" | "additionalProperties" => {}
            "type" => ensure!(has_type(rule, value), "{place}: {value} is not of the type {rule}"),
            "enum" => ensure!(
                rule.as_array().is_some_and(|values| values.contains(value)),
                "{place}: {value} is none of {rule}"
            ),
            "minimum" => ensure!(
                value.as_f64().is_none_or(|value| Some(value) >= rule.as_f64()),
                "{place}: {value} is below {rule}"
            ),
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    ensure!(!value.is_object() || value.get(name).is_some(), "{place}: {name} is missing");
                }
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(rule, item, &format!("{place}[{index}]"))?;
                }
            }
            other => bail!("{place}: the keyword {other} is not known here"),
        }
    }
    for (name, part) in value.as_object().into_iter().flatten() {
        let described = schema["properties"].get(name).or_else(|| schema.get("additionalProperties"));
        let described = described.with_context(|| format!("{place}: {name} is not described"))?;
        check(described, part, &format!("{place}.{name}"))?;
    }
    Ok(())
}

fn has_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    let names = rule.as_array().map_or(std::slice::from_ref(rule), Vec::as_slice);
    names.iter().filter_map(Value::as_str).any(is)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_checked() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": { "type": "integer", "minimum": 1 },
                "b": { "type": ["string", "null"] },
                "c": { "type": "array", "items": { "enum": ["x", "y"] } },
                "d": { "type": "object", "additionalProperties": { "type": "boolean" } },
            },
            "required": ["a"],
        });
        let rows = [
            (json!({ "a": 1 }), true),
            (json!({ "a": 1, "b": null, "c": ["x", "y"], "d": { "e": true } }), true),
            (json!({}), false),
            (json!([]), false),
            (json!({ "a": 0 }), false),
            (json!({ "a": 1.5 }), false),
            (json!({ "a": 1, "b": 2 }), false),
            (json!({ "a": 1, "c": ["z"] }), false),
            (json!({ "a": 1, "d": { "e": 1 } }), false),
            (json!({ "a": 1, "z": 1 }), false),
        ];
        for (value, is_valid) in rows {
            assert_eq!(check(&schema, &value, "it").is_ok(), is_valid, "{value}");
        }
        assert!(check(&json!({ "maxLength": 3 }), &json!("a"), "it").is_err());
    }
}
