// JSON schemas of /openapi.json in words: types, limits, fields, and an example of each.

/** Return the name behind a reference, or null. */
export function nameOf(schema) {
  return schema?.$ref ? schema.$ref.split("/").at(-1) : null;
}

/** Return a schema with its reference followed. */
function resolved(schema, schemas) {
  const name = nameOf(schema);
  return name ? schemas[name] : schema;
}

/** Return a type as parts: texts, and `{ name }` for schemas of their own. */
export function typeOf(schema) {
  const name = nameOf(schema);
  if (name) return [{ name }];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  const several = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (several) return several.flatMap((each, i) => (i ? [" or ", ...typeOf(each)] : typeOf(each)));
  if (schema.type === "array") return ["list of ", ...(schema.prefixItems ? [`${schema.prefixItems.length} values`] : typeOf(schema.items ?? {}))];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return ["object of ", ...typeOf(schema.additionalProperties)];
  return [schema.type ?? "anything"];
}

/** Return the limits of a schema in words. */
function limitsOf(schema) {
  const parts = [schema, ...(schema.anyOf ?? [])];
  const first = (key) => parts.map((part) => part[key]).find((value) => value !== undefined);
  const text = (value) => (Math.abs(value) > Number.MAX_SAFE_INTEGER ? value.toExponential(1) : value);
  const range = (low, high, one = "", several = "") => {
    const counted = (value) => `${text(value)}${value === 1 ? one : several}`;
    if (low !== undefined && high !== undefined) return `${text(low)} to ${counted(high)}`;
    if (low !== undefined) return `at least ${counted(low)}`;
    return high === undefined ? null : `at most ${counted(high)}`;
  };
  return [
    range(first("minimum"), first("maximum")),
    first("exclusiveMinimum") === undefined ? null : `above ${first("exclusiveMinimum")}`,
    first("exclusiveMaximum") === undefined ? null : `below ${first("exclusiveMaximum")}`,
    range(first("minItems"), first("maxItems"), " entry", " entries"),
    range(first("minLength"), first("maxLength"), " character", " characters"),
    first("pattern") === undefined ? null : `like ${first("pattern")}`,
  ].filter(Boolean).join(", ");
}

/** Return the fields of an object's schema. */
export function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, field]) => ({
    name,
    type: typeOf(field),
    limits: limitsOf(field),
    required: required.has(name),
    standard: "default" in field && field.default !== null ? JSON.stringify(field.default) : "",
    description: field.description ?? "",
  }));
}

/** Return an example of a schema: the required fields, or its first alternative. */
export function exampleOf(schema, schemas) {
  const own = resolved(schema, schemas);
  if (own.default !== undefined && own.default !== null) return own.default;
  if (own.const !== undefined) return own.const;
  if (own.enum) return own.enum[0];
  const several = own.anyOf ?? own.oneOf ?? own.allOf;
  if (several) return exampleOf(several[0], schemas);
  if (own.type === "array") return [exampleOf(own.items ?? {}, schemas)];
  if (own.type === "object" || own.properties) {
    return Object.fromEntries((own.required ?? []).map((name) => [name, exampleOf(own.properties[name], schemas)]));
  }
  return { integer: 1, number: 0.5, boolean: true, string: "text" }[own.type] ?? null;
}
