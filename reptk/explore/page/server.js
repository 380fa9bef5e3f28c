// Requests to the server of this page. An answer that is an error becomes an Error with its message.

async function answered(response) {
  if (response.ok) return response;
  let message = `the server answers ${response.status}`;
  try {
    message = (await response.json()).error || message;
  } catch { /* an error without words */ }
  throw new Error(message);
}

async function request(address, options) {
  let response;
  try {
    response = await fetch(address, { credentials: "same-origin", ...options });
  } catch {
    throw new Error("the server does not answer: reptk explore has ended");
  }
  return answered(response);
}

export async function getJson(address) {
  return (await request(address)).json();
}

export async function postJson(address, value) {
  const options = { method: "POST", body: JSON.stringify(value), headers: { "Content-Type": "application/json" } };
  return (await request(address, options)).json();
}

export async function postFile(address, file) {
  const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
  return (await request(address, options)).json();
}

// Numbers arrive as little-endian arrays, which is the order of every browser's machine today.

export async function getFloats(address) {
  return new Float32Array(await (await request(address)).arrayBuffer());
}

export async function getIntegers(address) {
  return new Int32Array(await (await request(address)).arrayBuffer());
}

const MAX_ROWS = 10000;

/** Return the records of rows: row, id, path, class, and the values of columns. */
export async function getRecords(rows) {
  const records = [];
  for (let start = 0; start < rows.length; start += MAX_ROWS) {
    records.push(...await postJson("/api/rows", rows.slice(start, start + MAX_ROWS)));
  }
  return records;
}

export const thumbnailAddress = (row) => `/image/${row}`;
export const pictureAddress = (row) => `/picture/${row}`;
