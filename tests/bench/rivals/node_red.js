// The function node of the Node-RED flow. settings.js gives it `session`, `ort` (onnxruntime-node) and the Float32Array
// that this knows: a function node has its own.
const session = await global.get("session");
const ort = global.get("ort");
const input = new ort.Tensor("float32", global.get("Float32Array").from(msg.payload.x), [1, 16]);
const { probabilities } = await session.run({ data: input });
msg.payload = { id: msg.payload.id, scores: Array.from(probabilities.data) };
return msg;
