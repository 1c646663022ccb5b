// Swagger UI over this gateway's own description. Nothing is loaded from elsewhere.

/** The key that was given to the chat page, where it was. */
function storedKey() {
  try {
    return sessionStorage.getItem("opengrid-api-key") ?? localStorage.getItem("opengrid-api-key");
  } catch {
    return null;
  }
}

globalThis.SwaggerUIBundle({
  url: "/grid/v1/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  requestInterceptor(request) {
    const key = storedKey();
    const given = request.headers.Authorization ?? request.headers["x-api-key"];
    if (key && !given) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
