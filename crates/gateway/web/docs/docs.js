// Swagger UI over this gateway's own description. Nothing is loaded from elsewhere.
globalThis.SwaggerUIBundle({
  url: "/grid/v1/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
